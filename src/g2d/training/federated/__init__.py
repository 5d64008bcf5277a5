"""Training with clients that keep their records: messages, checks, aggregation, rounds.

How messages travel does not live here: everything takes bytes and gives bytes. What malicious
clients send is in `attacks.byzantine`; what becomes of what was trained is in `defence.federating`.
"""
