// Colours of the canvas for light and dark themes of the front end.

const SHARED = { spectrum: "#0d0e14" }

const DARK = {
  ...SHARED,
  name: "dark",
  ground: "#16181d",
  ruler: "#1f2228",
  line: "#3a3f4a",
  text: "#b4bac6",
  outline: "#4f9fd6",
  body: "#8fd0ff",
  beat: "rgba(255,255,255,0.13)",
  region: "#ffb347",
  regionFill: "rgba(255,167,38,0.24)",
  selectedFill: "rgba(255,167,38,0.40)",
  regionText: "#201300",
  cursor: "#ffffff",
  shade: "rgba(10,11,14,0.62)",
  empty: "rgba(255,255,255,0.05)",
}

const LIGHT = {
  ...SHARED,
  name: "light",
  ground: "#fbfbfd",
  ruler: "#eceef2",
  line: "#c3c8d1",
  text: "#434a57",
  outline: "#5c9bd1",
  body: "#1d5c99",
  beat: "rgba(0,0,0,0.14)",
  region: "#b45309",
  regionFill: "rgba(234,120,16,0.26)",
  selectedFill: "rgba(234,120,16,0.44)",
  regionText: "#ffffff",
  cursor: "#c01048",
  shade: "rgba(255,255,255,0.66)",
  empty: "rgba(0,0,0,0.05)",
}

const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true })
const themes = new Map() // CSS colour -> theme

/** The theme that fits the background colour of an element. */
export function themeOf(element) {
  const colour = getComputedStyle(element).backgroundColor
  if (!themes.has(colour)) themes.set(colour, luminance(colour) < 0.5 ? DARK : LIGHT)
  return themes.get(colour)
}

/** 0 to 1, without gamma. Drawing the colour resolves every CSS notation. */
function luminance(colour) {
  probe.fillStyle = colour
  probe.fillRect(0, 0, 1, 1)
  const [r, g, b] = probe.getImageData(0, 0, 1, 1).data
  return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255
}
