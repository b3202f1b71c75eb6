-- One POST, repeated by wrk; the result as one line of JSON. Arguments: body, accept.
function init(arguments)
  wrk.method = "POST"
  wrk.body = arguments[1]
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Accept"] = arguments[2]
  prepared = wrk.format()
end

function request()
  return prepared
end

function done(summary, latency, requests)
  local errors = summary.errors
  local line = '{"requests":%d,"microseconds":%d,"bytes":%d,"errors":%d,"p50":%f,"p99":%f}\n'
  io.write(string.format(
    line, summary.requests, summary.duration, summary.bytes,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)
  ))
end
