from server.log import *
