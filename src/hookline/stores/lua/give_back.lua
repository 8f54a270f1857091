-- KEYS: one per ceiling. ARGV: id, then entry (-1: parallel), entry's beginning, and of each: what is added to a window, how many slots end.
local id = ARGV[1]
for i, key in ipairs(KEYS) do
  local index, first, n = tonumber(ARGV[i * 3 - 1]), tonumber(ARGV[i * 3]), tonumber(ARGV[i * 3 + 1])
  if index < 0 then
    for slot = 1, n do redis.call('ZREM', key, id .. '/' .. slot) end
  elseif n ~= 0 then
    local e = entry_of(key, index)
    if e and e.first == first then -- else it has left the window
      e.amount = e.amount + n
      write_entry(key, index, e)
      redis.call('HINCRBY', key, 'u', text(n))
    end
  end
end
return 1
