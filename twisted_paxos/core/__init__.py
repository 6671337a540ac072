"""The algorithm, pure: no Twisted, no clock, no randomness, no files, no sockets.

Time and random numbers come in as arguments, what is to be done goes out as
`Effects`; so one sequence of calls always gives one sequence of results.
"""
