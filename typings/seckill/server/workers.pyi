from server.workers import *
