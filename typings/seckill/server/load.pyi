from server.load import *
