// The models that the loader can load, as in sa3_core/checkpoints/releases.py.

const TEXT_ENCODER_GB = 1.2

/** Name -> gigabytes of the weights; whether the official files need a login; key of its use in words.js; seconds in one run. */
export const RELEASES = {
  "small-music": { weights: 2.27, gated: true, use: "music", seconds: 120 },
  "small-sfx": { weights: 2.27, gated: true, use: "sfx", seconds: 120 },
  medium: { weights: 9.22, gated: true, use: "all", seconds: 380 },
  "small-music-base": { weights: 2.27, gated: false, use: "base", seconds: 120 },
  "small-sfx-base": { weights: 2.27, gated: false, use: "base", seconds: 120 },
  "medium-base": { weights: 9.22, gated: false, use: "base", seconds: 380 },
}

/** Gigabytes to download, text encoder included. */
export function gigabytes(name, source) {
  return RELEASES[name].weights * (source === "mirror" ? 0.5 : 1) + TEXT_ENCODER_GB
}

/** The name of a release's folder, also of its repository. */
export function folder(name) {
  return `stable-audio-3-${name}`
}

/** The page of a release. */
export function page(name) {
  return `https://huggingface.co/stabilityai/${folder(name)}`
}
