--[[
rebuild_found: gives a sale that is being rebuilt its header, its stock and the one event with which
its new stream begins. Nobody who held units could pay while the sale was lost, so no hold lapses
before spared_ms: everybody has as long from now as the longest hold had at the ledger's last event.
Repeating it changes nothing.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] token of this rebuild  [3] seq of its event, past all that anybody has seen
         [4] state  [5] the ledger's last seq  [6] its time ms  [7] orders in the ledger
         [8] the highest seq that was ever seen here  [9] longest rest of a hold ms
         [10] fields of header and stock in msgpack: {field, value …}, {field, value …}
Returns  {status, sale time ms, ms before which no hold lapses}
Events   sale rebuilt

Answers: UPGRADE_NEEDED, CONFLICT (another rebuild has begun since), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, token, seq, state, last_seq, last_ms, orders, seen_seq, rest_ms = ARGV[1],
  ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9])
local header, stock = unpack(cmsgpack.unpack(ARGV[10]))
-- unpack fails at 8,000 values, and a sale may have had that many changes of its stock.
local CHUNK = 1000
if read_caller(caller) ~= FORMAT then return { STATUS.UPGRADE_NEEDED, 0, 0 } end
local known = redis.call('HMGET', KEYS[1], 'token', 'seq', 'last_ms', 'spared_ms')
if known[1] ~= token then return { STATUS.CONFLICT, 0, 0 } end
if known[2] then return { STATUS.DONE, tonumber(known[3]), tonumber(known[4]) } end

local time = redis.call('TIME')
local now_ms = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(last_ms))
local spared_ms = now_ms + rest_ms
for i = 1, #header, CHUNK do
  redis.call('HSET', KEYS[1], unpack(header, i, math.min(i + CHUNK - 1, #header)))
end
for i = 1, #stock, CHUNK do
  redis.call('HSET', KEYS[2], unpack(stock, i, math.min(i + CHUNK - 1, #stock)))
end
redis.call('HSET', KEYS[1], 'format', FORMAT, 'state', state,
  'reason', state == 'paused' and 'rebuilt' or '', 'spared_ms', string.format('%d', spared_ms),
  'trimmed_seq', string.format('%d', seq - 1), 'founded_seq', string.format('%d', seq))
local sale = { seq = seq - 1, now_ms = now_ms }
emit(sale, 'sale', 'rebuilt|' .. last_seq .. '|' .. last_ms .. '|' .. orders .. '|' .. seen_seq
  .. '|' .. state .. '|' .. string.format('%d', spared_ms))
write_sale(sale)
return { STATUS.DONE, now_ms, spared_ms }
