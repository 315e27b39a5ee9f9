# In a checkout the package seckill.server lies in server/ (see [tool.setuptools.package-dir]).
from server import *
