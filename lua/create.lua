--[[
create: writes a sale's definition and stock. Nothing is sold before open. Creating the same
definition again changes nothing; another definition under the same id is refused. Who was told of the
sale that is not here must find out first whether it was removed or lost.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] definition id  [3] definition (JSON)  [4] run_id of the server
         [5] opens ms  [6] ends ms  [7] hold ms  [8] pay ms  [9] limit per order
         [10] limit per buyer  [11] max lapsed  [12] clock jump ms
         [13 …] total and limit per buyer of each item, in order
Returns  {status, sale time ms}
Events   sale created

Answers: UPGRADE_NEEDED, NEW_SERVER, EXISTS, CONFLICT (another definition, or keys left over from a lost
sale), CREATED.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, definition_id, definition, run_id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local known = redis.call('HMGET', KEYS[1], 'definition_id', 'format')
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local format, _, known_seq = read_caller(caller)
if format ~= FORMAT or (known[2] and tonumber(known[2]) ~= FORMAT) then
  return { STATUS.UPGRADE_NEEDED, now_ms }
end
if not known[1] and known_seq > 0 then return { STATUS.NEW_SERVER, now_ms } end
if known[1] then
  return { known[1] == definition_id and STATUS.EXISTS or STATUS.CONFLICT, now_ms }
end
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]) > 0 then
  return { STATUS.CONFLICT, now_ms }
end
redis.call('HSET', KEYS[1], 'format', FORMAT, 'state', 'created', 'reason', '', 'seq', 0,
  'last_ms', now_ms, 'definition_id', definition_id, 'definition', definition,
  'server', name_server(run_id, 0),
  'origin_ms', ARGV[5], 'opens_ms', ARGV[5], 'ends_ms', ARGV[6], 'hold_ms', ARGV[7],
  'pay_ms', ARGV[8], 'limit_per_order', ARGV[9], 'limit_per_buyer', ARGV[10],
  'max_lapsed', ARGV[11], 'clock_jump_ms', ARGV[12], 'made', run_id .. ':' .. now_ms)
for i = 13, #ARGV, 2 do
  local index = (i - 13) / 2
  redis.call('HSET', KEYS[2], index .. ':available', ARGV[i], index .. ':held', 0,
    index .. ':confirmed', 0, index .. ':total', ARGV[i], index .. ':limit', ARGV[i + 1])
end
local sale = { seq = 0, now_ms = now_ms }
emit(sale, 'sale', 'created|' .. definition)
write_sale(sale)
return { STATUS.CREATED, now_ms }
