-- Every call differs, also between runs: `run` is unique per run, so that no response cache ever answers.
-- Arguments after "--": path, key, model, run, stream (0 or 1), prompt_bytes, then pairs of header name and value.
local path, model, tail, filler, run
local serial = 0

function init(args)
  path, model, run = args[1], args[3], args[4]
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. args[2]
  tail = args[5] == "1" and ',"stream":true,"stream_options":{"include_usage":true}}' or "}"
  filler = string.rep("All work and no play makes a dull prompt. ", math.floor(tonumber(args[6]) / 42))
  for i = 7, #args - 1, 2 do wrk.headers[args[i]] = args[i + 1] end
end

function request()
  serial = serial + 1
  local id = string.format("%s%06d", run, serial % 1000000)   -- 12 characters: see upstream.py
  return wrk.format(nil, path, nil, '{"model":"' .. model .. '","temperature":0,"user":"' .. id
    .. '","messages":[{"role":"system","content":"You are a helpful assistant that answers in short sentences."},'
    .. '{"role":"user","content":"Tell me about foxes and dogs, and why one jumps over the other. Case ' .. id .. " " .. filler
    .. '"}]' .. tail)
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'BENCH {"calls":%d,"duration_us":%d,"bytes":%d,"p50_us":%d,"p99_us":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.status, e.timeout))
end
