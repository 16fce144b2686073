"""What runs inside the sandbox: the server, and how it confines the programs that it runs.

Its sources are sent to a clean interpreter, which may be another one in a container. So these modules import one
another and the standard library, and nothing else.
"""
