--[[
find: the record of an order. Where there is none, there will be none either by a call whose caller has
given up by now: such a call may still be under way, and look young if the server's clock is set back. So
the moment is kept, or a later one that the caller has seen before (lib/sale, let_pass). Works at
maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] order id  [3] what the caller has seen of patience's clock, ms
Returns  {status, record, definition id}: both empty without DONE; the record empty where there is none
Events   none

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, order_id, passed_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, '', '' } end
read_clock(sale)
local record = redis.call('HGET', KEYS[4], order_id)
if not record then let_pass(sale.raw_ms, sale.passed_ms, passed_ms) end
return { STATUS.DONE, record or '', sale.definition_id }
