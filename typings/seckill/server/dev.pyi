from server.dev import *
