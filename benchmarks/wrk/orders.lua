-- One order a request: the next buyer's user token, a new idempotency key, one unit.
-- Arguments: a file with one user token a line.
dofile(debug.getinfo(1, 'S').source:match('@(.*/)') .. 'summary.lua')

local tokens, number, tail = {}, 0, nil
local BODY = '{"items":[{"sku":"tea","quantity":1}]}'

function init(args)
  for token in io.lines(args[1]) do tokens[#tokens + 1] = token end
  tail = '\r\nContent-Type: application/json\r\nContent-Length: ' .. #BODY .. '\r\n\r\n' .. BODY
  for i, token in ipairs(tokens) do
    tokens[i] = 'POST ' .. wrk.path .. ' HTTP/1.1\r\nHost: ' .. wrk.host .. ':' .. wrk.port
      .. '\r\nAuthorization: Bearer ' .. token .. '\r\nIdempotency-Key: k'
  end
end

function request()
  number = number + 1
  return tokens[(number - 1) % #tokens + 1] .. number .. tail
end
