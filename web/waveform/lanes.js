// The rows of the canvas: ruler, waveform, spectrogram, overview.

export const RULER = 18
export const OVERVIEW = 22
const GAP = 1

/** [top, height] of each lane on a canvas of this height: {ruler, wave, spectrum, overview}. */
export function lanesOf(height) {
  const room = height - RULER - OVERVIEW - 3 * GAP
  const wave = Math.round(room * 0.56)
  return {
    ruler: [0, RULER],
    wave: [RULER + GAP, wave],
    spectrum: [RULER + wave + 2 * GAP, room - wave],
    overview: [height - OVERVIEW, OVERVIEW],
  }
}
