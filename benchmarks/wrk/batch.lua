-- Two hundred orders a request, each of a new buyer, sent by the mall's backend.
-- Arguments: a file with the API key.
dofile(debug.getinfo(1, 'S').source:match('@(.*/)') .. 'summary.lua')

local ORDERS = 200
local ORDER = '{"buyer":"b%023d","key":"k1","items":[{"sku":"tea","quantity":1}]}'
local number, head, orders = 0, nil, {}

function init(args)
  local key = io.lines(args[1])()
  head = 'POST ' .. wrk.path .. ' HTTP/1.1\r\nHost: ' .. wrk.host .. ':' .. wrk.port
    .. '\r\nAuthorization: Bearer ' .. key
    .. '\r\nContent-Type: application/json\r\nContent-Length: '
end

function request()
  for i = 1, ORDERS do orders[i] = string.format(ORDER, number + i) end
  number = number + ORDERS
  local body = '{"orders":[' .. table.concat(orders, ',') .. ']}'
  return head .. #body .. '\r\n\r\n' .. body
end
