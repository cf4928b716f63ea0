// Where an edge may land: on beats, on zero crossings, or on a round number.

/** The beat nearest to a time. first: the time of any beat, in seconds. */
export function nearestBeat(time, bpm, first = 0) {
  const beat = 60 / bpm
  return first + Math.round((time - first) / beat) * beat
}

/** The time of the sample nearest to `time`, at most `reach` seconds away, from which the signal crosses zero; else null. */
export function nearestZero(samples, rate, time, reach = 0.02) {
  const centre = Math.round(time * rate)
  const most = Math.round(reach * rate)
  const crosses = i => i > 0 && i < samples.length && (samples[i] === 0 || samples[i - 1] < 0 !== samples[i] < 0)
  for (let away = 0; away <= most; away++) {
    if (crosses(centre - away)) return (centre - away) / rate
    if (crosses(centre + away)) return (centre + away) / rate
  }
  return null
}

/** A time rounded to the decimals that a pixel of `perPixel` seconds resolves, at least 10 ms, at most 1 us. */
export function roundTo(time, perPixel) {
  const decimals = Math.min(Math.max(Math.ceil(-Math.log10(perPixel)), 2), 6)
  return Number(time.toFixed(decimals))
}

/** Where a time lands. settings: {beats, zero, bpm, first}. clip: {samples, rate, coarse} or null. Clamped to [low, high]. */
export function snap(time, settings, clip, perPixel, low, high) {
  let snapped = roundTo(time, perPixel)
  if (settings.beats) snapped = nearestBeat(time, settings.bpm, settings.first)
  if (settings.zero && clip && !clip.coarse) snapped = nearestZero(clip.samples, clip.rate, snapped) ?? snapped
  return Math.min(Math.max(snapped, low), high)
}
