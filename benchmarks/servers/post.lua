-- For wrk: posts the file that BODY names with the content type TYPE, and prints what was measured on one line.
wrk.method = "POST"
wrk.body = io.open(os.getenv("BODY"), "rb"):read("*a")
wrk.headers["content-type"] = os.getenv("TYPE")
if os.getenv("JSON_LENGTH") then
  wrk.headers["inference-header-content-length"] = os.getenv("JSON_LENGTH")
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("measured %f %f %f %d\n", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, failed))
end
