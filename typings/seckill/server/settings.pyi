from server.settings import *
