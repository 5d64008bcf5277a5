"""Federated training by processes of their own: kits, the transport, the server's desk, a client.

NVFlare carries bytes and says whose certificate they came under; what they are is in `messages`.
Its job model is not used: a client asks for what there is to do, so that server and clients may be
killed and come back in any order.
"""
