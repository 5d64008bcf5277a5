"""Settings of the tiny vault on digits, as tables; `conftest` is not one module in a whole run."""

TINY = {
    "population": {
        "members": 4,
        "basins": 2,
        "base_steps": 200,
        "early_steps": 60,
        "fork_steps": 60,
        "batch": 64,
        "pool": 128,
        "pool_steps": 3,
    },
    "autoencoder": {"steps": 40, "width": 32},
    "diffusion": {"steps": 200, "width": 32, "depth": 1, "sampler_steps": 10},
    "guidance": {"pool": 128, "pool_steps": 3, "latent_steps": 5, "polish_steps": 40},
    # A class has some twenty gate examples: by chance one of a tiny vault may lose half of them.
    "gates": {"accuracy_drop": 0.2, "class_drop": 1.0, "stale_asr": 1.0, "pool": 64},
}
