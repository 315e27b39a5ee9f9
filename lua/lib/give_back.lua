-- The only code that returns units: to the stock, and to what a buyer may still buy.

-- Moves an order's units out of 'held' or 'confirmed': back to 'available', or, when nothing comes
-- back (to == 'gone'), out of the sale: the total falls.
local function give_back_stock(order, from, to)
  local lines = read_units(order.cart)
  for i = 1, #lines, 2 do
    redis.call('HINCRBY', KEYS[2], lines[i] .. ':' .. from, -lines[i + 1])
    if to == 'gone' then
      redis.call('HINCRBY', KEYS[2], lines[i] .. ':total', -lines[i + 1])
    else
      redis.call('HINCRBY', KEYS[2], lines[i] .. ':' .. to, lines[i + 1])
    end
  end
end

-- Lets the buyer buy these units again; lapses counts unpaid expiries up.
local function give_back_limit(order, lapses)
  local purse, _, lapsed = read_purse(redis.call('HGET', KEYS[3], order.buyer))
  local lines = read_units(order.cart)
  for i = 1, #lines, 2 do
    purse[lines[i]] = (purse[lines[i]] or 0) - lines[i + 1]
  end
  redis.call('HSET', KEYS[3], order.buyer, write_purse(purse, lapsed + lapses))
end
