-- An order's record in the orders hash:
--   <state><version><print 6><deadline>|<cart>|<buyer>[|<payments>[|<refund>]]
-- state: h held, p paying, c confirmed, f refunded, r released, x expired; version: one digit of
-- base 36, up by one with every event of the order; print: hash of attrs, six characters;
-- deadline: ms after the sale's origin; cart: as in lib/units; payments: comma-separated, first the
-- one that paid for the order (when it is confirmed or refunded), the others are due for refund.
-- Kept under 45 characters for 24-character buyer ids: the next allocation size is 16 bytes more.

local VERSIONS = '0123456789abcdefghijklmnopqrstuvwxyz'
local PAYMENTS_MAX = 16

local function read_record(text)
  local state, version, print6, deadline, cart, buyer, payments, refund =
    string.match(text, '^(%l)(%w)(......)(%d+)|([^|]*)|([^|]*)|?([^|]*)|?([^|]*)$')
  local order = {
    state = state, version = string.find(VERSIONS, version, 1, true) - 1, print6 = print6,
    deadline = tonumber(deadline), cart = cart, buyer = buyer, payments = {}, refund = refund,
  }
  for payment in string.gmatch(payments, '[^,]+') do
    order.payments[#order.payments + 1] = payment
  end
  return order
end

local function write_record(order)
  local text = order.state .. string.sub(VERSIONS, order.version + 1, order.version + 1)
    .. order.print6 .. string.format('%d', order.deadline) .. '|' .. order.cart .. '|' .. order.buyer
  if #order.payments > 0 or order.refund ~= '' then
    text = text .. '|' .. table.concat(order.payments, ',')
  end
  if order.refund ~= '' then text = text .. '|' .. order.refund end
  return text
end

local function has_payment(order, payment)
  for _, seen in ipairs(order.payments) do
    if seen == payment then return true end
  end
  return false
end

-- Writes an order's next version and its event. Every change of an order after reserve ends here.
local function write_order(sale, id, order, kind, detail)
  order.version = order.version + 1
  local record = write_record(order)
  emit(sale, id, kind .. '|' .. detail .. '|' .. record)
  redis.call('HSET', KEYS[4], id, record)
  return record
end

-- The order's record when this caller may see it, else nil. An empty buyer means the backend.
local function find_order(id, buyer)
  local text = redis.call('HGET', KEYS[4], id)
  if not text then return nil end
  local order = read_record(text)
  if buyer ~= '' and buyer ~= order.buyer then return nil end
  return order, text
end
