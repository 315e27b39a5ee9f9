from server.describe import *
