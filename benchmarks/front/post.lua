-- For wrk: posts the file BODY with the header lines in HEADERS, and prints its figures as one line of JSON.
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
for name, value in os.getenv("HEADERS"):gmatch("([^:\n]+): ([^\n]+)") do
    wrk.headers[name] = value
end

function done(summary, latency)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format(
        '\n{"calls": %d, "failed": %d, "throughput": %.3f, "mean": %.4f, "p50": %.4f, "p90": %.4f, ' ..
            '"p99": %.4f, "max": %.4f}\n',
        summary.requests, failed, summary.requests / summary.duration * 1e6, latency.mean / 1000,
        latency:percentile(50) / 1000, latency:percentile(90) / 1000, latency:percentile(99) / 1000,
        latency.max / 1000
    ))
end
