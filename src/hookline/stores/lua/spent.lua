-- KEYS: in flight, then windows. ARGV: now, record prefix. Spent plus reserved of each.
local now, answer = clock(ARGV[1]), {}
charge_expired(KEYS[1], ARGV[2], now)
for i = 2, #KEYS do
  local m = redis.call('HMGET', KEYS[i], 'w', 'r')
  answer[i - 1] = spent_in(KEYS[i], tonumber(m[1] or 0), now) + tonumber(m[2] or 0)
end
return answer
