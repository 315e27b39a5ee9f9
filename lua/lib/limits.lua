-- The one place where limits are decided, for reserve and for a late payment alike.

-- Returns a refusal, or nil. lines as from read_units, purse as from read_purse,
-- sku_limits: index -> units a buyer may have of it; 0 means no limit everywhere.
local function limit_refusal(lines, units, purse, purse_units, sku_limits, sale)
  if sale.limit_per_order > 0 and units > sale.limit_per_order then return STATUS.ORDER_LIMIT end
  for i = 1, #lines, 2 do
    local limit = sku_limits[lines[i]]
    if limit > 0 and (purse[lines[i]] or 0) + lines[i + 1] > limit then return STATUS.SKU_LIMIT end
  end
  if sale.limit_per_buyer > 0 and purse_units + units > sale.limit_per_buyer then
    return STATUS.BUYER_LIMIT
  end
  return nil
end
