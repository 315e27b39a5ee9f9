from server.jwks import *
