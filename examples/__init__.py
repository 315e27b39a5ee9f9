"""The example sale, so that an installed `seckill demo` finds it too."""
