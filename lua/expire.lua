--[[
expire: one bounded sweep over the two deadline queues. Overdue orders give their units back and
count as a lapse of their buyer; entries whose order has moved on are dropped. Both queues are in
order of deadline, because a duration is one number per sale and state, so the sweep ends at the
first order that is not due. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] orders to look at in each queue, at most 1,000
Returns  {status, sale time ms, orders expired, 1 when more may be due now,
         deadline ms of the next order due, 0 for none}
Events   expired, sale paused (the clock jumped), sale settled

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, CLOCK_JUMP (nothing expires until the sale is
resumed), DONE.
]]
--@include "lib/status"
--@include "lib/units"
--@include "lib/sale"
--@include "lib/record"
--@include "lib/give_back"
local caller, look_at = ARGV[1], tonumber(ARGV[2])
local HEARTBEAT_MS = 1000
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0, 0, 0, 0 } end
read_clock(sale)
if sale.jumped then
  pause_for_jump(sale)
  return { STATUS.CLOCK_JUMP, sale.now_ms, 0, 0, 0 }
end

-- Looks at the head of one queue: what is due, how many entries can go, when the next one is due.
local function look(ids, state)
  local due, gone, next_ms, seen = {}, 0, 0, {}
  local records = #ids > 0 and redis.call('HMGET', KEYS[4], unpack(ids)) or {}
  for i, id in ipairs(ids) do
    local order = records[i] and read_record(records[i])
    -- An id that somebody has put there twice lapses once.
    if order and order.state == state and not seen[id] then
      seen[id] = true
      local deadline_ms = due_ms(sale, order)
      if deadline_ms > sale.now_ms then
        next_ms = deadline_ms
        break
      end
      due[#due + 1] = { id = id, order = order }
    end
    gone = gone + 1
  end
  return due, gone, next_ms
end

local held_ids = redis.call('LRANGE', KEYS[5], 0, look_at - 1)
local paying_ids = redis.call('LRANGE', KEYS[6], 0, look_at - 1)
local held_due, held_gone, held_next_ms = look(held_ids, 'h')
local paying_due, paying_gone, paying_next_ms = look(paying_ids, 'p')

local function expire_all(due)
  for _, entry in ipairs(due) do
    entry.order.state = 'x'
    write_order(sale, entry.id, entry.order, 'expired', '')
    give_back_stock(entry.order, 'held', 'available')
    give_back_limit(entry.order, 1)
  end
end

write_even_when_full()
expire_all(held_due)
expire_all(paying_due)
if held_gone > 0 then redis.call('LTRIM', KEYS[5], held_gone, -1) end
if paying_gone > 0 then redis.call('LTRIM', KEYS[6], paying_gone, -1) end
local expired = #held_due + #paying_due
local next_ms = held_next_ms
if next_ms == 0 or (paying_next_ms > 0 and paying_next_ms < next_ms) then next_ms = paying_next_ms end
if expired > 0 then
  settle_if_done(sale)
  write_sale(sale)
elseif next_ms > 0 and sale.now_ms - sale.last_ms >= HEARTBEAT_MS then
  -- While units are held the sale's clock must keep up, or an idle hour would look like a jump.
  write_sale(sale)
end
local more = 0
if held_gone == look_at or paying_gone == look_at then more = 1 end
return { STATUS.DONE, sale.now_ms, expired, more, next_ms }
