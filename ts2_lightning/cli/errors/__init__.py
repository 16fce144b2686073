"""Errors in one line: what ends a command becomes an exit status and a message, with the option or FILE:LINE that gave
the setting and the nearest right name. In come exceptions, the parser's messages and the command line; no command.
"""
