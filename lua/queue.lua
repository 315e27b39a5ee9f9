--[[
queue: opens the queue of a sale, with a commitment to the seed by which its tickets may be ranked. A
sale has one queue for its life: opening it again changes nothing, whatever is handed in. The sale's
header says that it has one, to reserve.lua, which may be asked without the queue's keys.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] queue  [9] tickets  [10] steps  [11] left  [12] ranks  [13] gone
ARGV     [1] caller  [2] definition id  [3] mode  [4] joins ms  [5] draw ms  [6] token life ms
         [7] rate per s, 0 for none  [8] overbook max  [9] seed  [10] commitment  [11] list secret
         [12] keys  [13] units that each token may take, for a draw; else 1
Returns  {status, sale time ms}
Events   queue opened

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, STALE_DEFINITION, ALREADY, CREATED.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, definition_id, mode, joins_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local draw_ms, life_ms, rate_per_s, overbook_max = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local seed, commitment, secret, keys, each = ARGV[9], ARGV[10], ARGV[11], ARGV[12], ARGV[13]
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0 } end
read_clock(sale)
if definition_id ~= sale.definition_id then return { STATUS.STALE_DEFINITION, sale.now_ms } end
if sale.has_queue and redis.call('HEXISTS', KEYS[8], 'mode') == 1 then return { STATUS.ALREADY, sale.now_ms } end
emit(sale, 'sale', 'queue_opened|' .. commitment)
local clock_ms = math.max(sale.now_ms, sale.opens_ms)
-- What a sale lost before under the same id has left here is nobody's any more.
redis.call('UNLINK', KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13])
redis.call('HSET', KEYS[8], 'mode', mode, 'next', 0, 'head', 0, 'lapsed', 0, 'step', 0, 'first', 1,
  'joins_ms', joins_ms, 'draw_ms', draw_ms, 'life_ms', life_ms, 'rate_per_s', rate_per_s,
  'overbook_max', overbook_max, 'used', '0,0,0,0,0,0,0,0,0,0', 'risk', '0,0,0,0,0,0,0,0,0,0',
  'users', 0, 'units', 0, 'credit', 0, 'paced_ms', sale.opens_ms, 'lapses', 0, 'seed', seed,
  'commitment', commitment, 'secret', secret, 'keys', keys, 'each', each,
  'clock_ms', clock_ms, 'seen_ms', sale.raw_ms, 'sells', 0)
redis.call('HSET', KEYS[1], 'queue', 1)
write_sale(sale)
return { STATUS.CREATED, sale.now_ms }
