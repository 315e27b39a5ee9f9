--[[
trim: takes old entries off the front of the event stream, up to the slowest of all groups and never
past it: what a group has not acknowledged stays, and so does all that follows. One bounded step;
repeat it while it answers that more may go. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] entries younger than this many ms stay, by the server's clock
         [3] nothing past this entry goes; empty for no such bound  [4] entries to look at, at most
Returns  {status, sale time ms, entries that went, 1 when more may go now, seq of the first event that
         is left (the next one to come when none is), name of the group that holds back or ''}
Events   none; the header's trimmed_seq and trimmed_entries say what went, so that a stream that does
         not begin with event 1 is told from a damaged one

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED (nothing goes until it is rebuilt), NEW_SERVER, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, keep_ms = ARGV[1], tonumber(ARGV[2])
local through, look_at = ARGV[3], tonumber(ARGV[4])

-- An entry id as two numbers; `step` counts its second one on.
local function read_id(text, step)
  local ms, seq = string.match(text, '^(%d+)%-(%d+)$')
  return { tonumber(ms), tonumber(seq) + step }
end

local function is_before(a, b)
  return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
end

check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0, 0, 0, 0, '' } end
read_clock(sale)
local floor, slowest = { math.max(0, sale.raw_ms - keep_ms), 0 }, ''
if through ~= '' then
  local bound = read_id(through, 1)
  if is_before(bound, floor) then floor = bound end
end
local groups = redis.call('XINFO', 'GROUPS', KEYS[7])
for i = 1, #groups do
  local group = {}
  for k = 1, #groups[i], 2 do group[groups[i][k]] = groups[i][k + 1] end
  -- The first entry that this group still needs.
  local first = read_id(group['last-delivered-id'], 1)
  local pending = redis.call('XPENDING', KEYS[7], group.name)
  if pending[1] > 0 then
    local oldest = read_id(pending[2], 0)
    if is_before(oldest, first) then first = oldest end
  end
  if is_before(first, floor) then floor, slowest = first, group.name end
end

local before = string.format('%d-%d', floor[1], floor[2])
write_even_when_full()
-- Whole nodes of the stream first, so that a step is short however much there is; what is left then
-- is less than a node.
local went = redis.call('XTRIM', KEYS[7], 'MINID', '~', before, 'LIMIT', look_at)
if went == 0 then went = redis.call('XTRIM', KEYS[7], 'MINID', '=', before) end
local oldest = redis.call('XRANGE', KEYS[7], '-', '+', 'COUNT', 1)[1]
local first_seq, more = sale.seq + 1, 0
if oldest then
  first_seq = read_id(oldest[1], 1)[2] - #oldest[2] / 2
  if is_before(read_id(oldest[1], 0), floor) then more = 1 end
end
if went > 0 then
  redis.call('HSET', KEYS[1], 'trimmed_seq', first_seq - 1)
  redis.call('HINCRBY', KEYS[1], 'trimmed_entries', went)
end
return { STATUS.DONE, sale.now_ms, went, more, first_seq, slowest }
