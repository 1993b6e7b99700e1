"""What authors of analyses use: the decorator, the context, the exceptions that ask for another attempt or none.

Authors import from `millstream`. Nothing here runs an analysis, knows a store, or needs a package of the servers.
"""
