"""What is published about the interfaces: OpenAPI, AsyncAPI, and their pages. Made from the tables and models in use;
nothing depends on it.
"""
