"""`opd serve`: a frozen model that scores response positions over HTTP, and does nothing else.

app      routes, token, limits        batcher  requests that wait together are read together
scoring  a checked request → rollouts → scores → a frame
"""
