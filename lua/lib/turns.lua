-- The clock of a sale's queue: it goes on while the sale sells and stands still while it does not, so
-- that neither a pause, nor an outage, nor a wrong clock takes anybody's turn. admit.lua winds it up.
--   clock_ms  where it stood at seen_ms, which is TIME as it was then
--   sells     '1' if it has gone on since

-- While anybody could buy, somebody has looked more often than this.
local UNSEEN_MAX_MS = 10000

-- Where it stands. Of a step of TIME that is too long for two looks only so much was seen, and of a step
-- back nothing. After read_clock.
local function turn_clock(sale, clock_ms, seen_ms, sells)
  local passed_ms = sells == '1' and sale.raw_ms - tonumber(seen_ms) or 0
  return tonumber(clock_ms) + math.max(0, math.min(passed_ms, UNSEEN_MAX_MS))
end
