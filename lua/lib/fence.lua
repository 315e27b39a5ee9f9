-- Stops a sale of which this server has lost something; `seckill rebuild` alone brings it back. Nothing
-- else of it is touched, and there is no event: the stream must not grow where a part of it is missing.
-- state: the one it had, '' for none.
local function fence_sale(state, reason)
  redis.call('HSET', KEYS[1], 'state', 'fenced', 'reason', reason, 'fenced_state', state)
end
