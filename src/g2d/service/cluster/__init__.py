"""Beyond one machine, over Ray: an engine for jobs, and a service of many replicas.

`lease` is the protocol between coordinator and replicas, free of Ray and of torch; `rollout` takes
a generation to all replicas; `mirror` is what a replica keeps of the vault. Ray is imported by
`core.ray_engine`, `core.ray_cluster` and `deployment` alone, and only when it is asked for.
"""
