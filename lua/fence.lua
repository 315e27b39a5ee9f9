--[[
fence: stops a sale of which this server has lost something that is known elsewhere, to the ledger or
to an engine: all of it, or its newest events, or it is another sale that was made anew under the same
id; or any sale, if somebody gives a reason. Nothing is sold, paid for
or expired any more until `seckill rebuild` has brought it back; nothing else is touched, and the
state it had stands in fenced_state. A sale that is not there gets a header without stock, so that
nobody makes it anew. Repeating it changes nothing. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] made, as it was seen here a moment ago, empty for no such sale
         [3] made, as it is known  [4] the last seq that is known  [5] definition id
         [6] definition (JSON)  [7] origin ms  [8] opens ms  [9] ends ms  [10] hold ms  [11] pay ms
         [12] limit per order  [13] limit per buyer  [14] max lapsed  [15] clock jump ms
         [16] the reason to fence it if nothing is wrong with it, empty for none
Returns  {status, reason, 1 when this call has fenced it}
Events   none

Answers: UPGRADE_NEEDED, FENCED (by this call or before), DONE (nothing is wrong, or it is another
sale by now than was seen: look again).
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/fence"
local caller, seen_made, known_made, known_seq, wanted =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[16]
local h = redis.call('HMGET', KEYS[1], 'format', 'made', 'seq', 'state', 'reason')
if read_caller(caller) ~= FORMAT or (h[1] and tonumber(h[1]) ~= FORMAT) then
  return { STATUS.UPGRADE_NEEDED, '', 0 }
end
if h[4] == 'fenced' then return { STATUS.FENCED, h[5] or '', 0 } end
local made, seq = h[2] or '', tonumber(h[3]) or 0
if made ~= seen_made then return { STATUS.DONE, '', 0 } end

local reason
if not h[1] then
  reason = string.format('lost: this server has nothing of it, events up to %d are known', known_seq)
elseif made ~= known_made then
  reason = 'made anew: this is not the sale that is known under its id'
elseif seq < known_seq then
  reason = string.format('behind: this server ends at event %d, events up to %d are known', seq, known_seq)
elseif wanted ~= '' then
  reason = wanted
else
  return { STATUS.DONE, '', 0 }
end

write_even_when_full()
if not h[1] then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'format', FORMAT, 'seq', 0, 'server', '', 'made', '',
    'last_ms', time[1] * 1000 + math.floor(time[2] / 1000), 'definition_id', ARGV[5],
    'definition', ARGV[6], 'origin_ms', ARGV[7], 'opens_ms', ARGV[8], 'ends_ms', ARGV[9],
    'hold_ms', ARGV[10], 'pay_ms', ARGV[11], 'limit_per_order', ARGV[12],
    'limit_per_buyer', ARGV[13], 'max_lapsed', ARGV[14], 'clock_jump_ms', ARGV[15])
end
fence_sale(h[4] or '', reason)
return { STATUS.FENCED, reason, 1 }
