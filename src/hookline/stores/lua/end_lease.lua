-- The lease of a worker that died, ended by one that found its book. KEYS: in flight, lease. ARGV: now, the lease's id, all that was or may be spent of it.
local now = clock(ARGV[1])
local kept = redis.call('GET', KEYS[2])
if not kept then return 0 end
local lease = cmsgpack.unpack(kept)
local spent = math.max(tonumber(ARGV[3]) - lease.total, 0)
for i, window in ipairs(lease.keys) do
  if lease.is_charged then
    if spent ~= lease.amount then correct(window, lease.spans[i], lease.entries[i][1], lease.entries[i][2], spent - lease.amount) end
  else
    change(window, 'r', -lease.amount)
    if not lease.is_closed then change(window, 'o', -lease.amount) end
    if spent ~= 0 then spend(window, lease.spans[i], now, spent) end
    keep_budget(window, lease.spans[i], lease.resets[i], now)
  end
end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[2])
return 1
