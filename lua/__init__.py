"""The atomic core: one Lua script per verb. ``seckill.scripts`` loads the files beside this one."""
