-- Units by SKU as text, one form for carts and for the buyers hash: SKU indexes in ascending order,
-- "index" for one unit, "index:quantity" for more, joined by commas: "0,3:2". In the buyers hash a
-- "!count" of unpaid expiries may follow: "0,3:2!1". Short on purpose: "0" costs 8 bytes a buyer.

-- Returns {index, quantity, index, quantity …} and the units in all.
local function read_units(text)
  local lines, units = {}, 0
  for index, quantity in string.gmatch(text, '(%d+):?(%d*)') do
    local count = quantity == '' and 1 or tonumber(quantity)
    lines[#lines + 1] = index
    lines[#lines + 1] = count
    units = units + count
  end
  return lines, units
end

-- A buyer's entry: units by SKU index (a string), units in all, unpaid expiries.
local function read_purse(text)
  local purse, total = {}, 0
  if not text then return purse, 0, 0 end
  local body, lapsed = string.match(text, '^([^!]*)!?(%d*)$')
  local lines, units = read_units(body)
  for i = 1, #lines, 2 do purse[lines[i]] = lines[i + 1] end
  return purse, units, tonumber(lapsed) or 0
end

-- The text of a buyer's entry. It is kept even when it is empty: whoever is in the buyers hash has
-- had an order, and is therefore never told "sold out" from memory.
local function write_purse(purse, lapsed)
  local indexes = {}
  for index, count in pairs(purse) do
    if count > 0 then indexes[#indexes + 1] = index end
  end
  table.sort(indexes, function(a, b) return tonumber(a) < tonumber(b) end)
  for i, index in ipairs(indexes) do
    if purse[index] > 1 then indexes[i] = index .. ':' .. purse[index] end
  end
  local text = table.concat(indexes, ',')
  if lapsed > 0 then text = text .. '!' .. lapsed end
  return text
end
