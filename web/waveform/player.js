// Plays a part of a clip, once or in a loop.

import { LoopPlayer } from "./loop_player.js"

export class Player {
  /** onMove(seconds): once a frame during playback. onStop(): at the end, on stop(), and on errors. */
  constructor(onMove, onStop) {
    this.audio = new Audio()
    this.audio.preload = "auto"
    this.audio.addEventListener("ended", () => this.stop())
    this.audio.addEventListener("error", () => this.stop())
    this.round = new LoopPlayer()
    Object.assign(this, { onMove, onStop, playing: false, looping: false, frame: 0, end: Infinity })
  }

  /** Seconds in the file. */
  get time() {
    return this.looping ? this.round.time : this.audio.currentTime
  }

  /**
   * Plays a clip {url, duration} from `at` to `end` in seconds. loop: repeats from `start`, or from 0 where there is no end.
   * Rejects where the browser cannot.
   */
  async play({ url, duration }, start, end = Infinity, loop = false, at = start) {
    this.stop()
    const turn = (this.turn = Symbol("turn"))
    Object.assign(this, { playing: true, end })
    try {
      if (loop) await this.round.play(url, at, Number.isFinite(end) ? start : 0, Math.min(end, duration))
      else await this.playOnce(url, at)
    } catch (error) {
      if (this.turn !== turn) return
      this.stop()
      throw error
    }
    if (this.turn !== turn) return
    this.looping = loop
    this.follow()
  }

  async playOnce(url, at) {
    if (this.url !== url) this.audio.src = this.url = url
    this.audio.currentTime = at
    await this.audio.play()
  }

  stop() {
    cancelAnimationFrame(this.frame)
    this.audio.pause()
    this.round.stop()
    Object.assign(this, { looping: false, turn: null })
    if (!this.playing) return
    this.playing = false
    this.onStop()
  }

  follow() {
    this.frame = requestAnimationFrame(() => {
      if (!this.playing) return
      if (!this.looping && this.time >= this.end) return this.stop()
      this.onMove(this.time)
      this.follow()
    })
  }

  remove() {
    this.stop()
    this.round.remove()
    this.audio.removeAttribute("src")
    this.audio.load()
  }
}
