"""Fragments shared by the scripts: included by ``seckill.scripts``, never run alone."""
