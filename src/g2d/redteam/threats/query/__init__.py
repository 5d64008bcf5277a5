"""Query attacks on the API: the threat, the searches, a rotating chain and a live service."""
