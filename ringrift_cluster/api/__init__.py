"""The HTTP face: thin routes over a replica, one file a noun. The only room that imports FastAPI.

`api.app.create_app` makes it from `api.services.Services`. Shapes of answers live with their routes, so that the client
and the command line read what the routes write.
"""
