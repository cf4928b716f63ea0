// Plays a part of a file.

export class Player {
  /** onMove(seconds): once a frame during playback. onStop(): at the end, on stop(), and on errors. */
  constructor(onMove, onStop) {
    this.audio = new Audio()
    this.audio.preload = "auto"
    this.audio.addEventListener("ended", () => this.stop())
    this.audio.addEventListener("error", () => this.stop())
    Object.assign(this, { onMove, onStop, playing: false, frame: 0, end: Infinity })
  }

  /** Plays the file from `start` to `end` in seconds. Rejects where the browser cannot. */
  async play(url, start, end = Infinity) {
    this.stop()
    if (this.url !== url) this.audio.src = this.url = url
    this.playing = true
    this.end = end
    this.audio.currentTime = start
    try {
      await this.audio.play()
    } catch (error) {
      const stopped = !this.playing || error.name === "AbortError"
      this.stop()
      if (!stopped) throw error
    }
    if (this.playing) this.follow()
  }

  stop() {
    cancelAnimationFrame(this.frame)
    this.audio.pause()
    if (!this.playing) return
    this.playing = false
    this.onStop()
  }

  follow() {
    this.frame = requestAnimationFrame(() => {
      if (!this.playing) return
      if (this.audio.currentTime >= this.end) return this.stop()
      this.onMove(this.audio.currentTime)
      this.follow()
    })
  }

  remove() {
    this.stop()
    this.audio.removeAttribute("src")
    this.audio.load()
  }
}
