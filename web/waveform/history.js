// Undo and redo over states that are plain values.

export class History {
  /** first: the state before any edit. limit: how many states are kept. */
  constructor(first, limit = 200) {
    this.states = [first]
    this.at = 0
    this.limit = limit
    this.joined = null
  }

  get state() {
    return this.states[this.at]
  }

  get canUndo() {
    return this.at > 0
  }

  get canRedo() {
    return this.at < this.states.length - 1
  }

  /** Records a state. States pushed one after the other with the same `join` are one step; a state equal to the last is none. */
  push(state, join = null) {
    if (state === this.state) return
    const same = join !== null && join === this.joined && this.at > 0 && !this.canRedo
    if (!same) this.at++
    this.states.splice(this.at, Infinity, state)
    if (this.states.length > this.limit) this.states.shift()
    this.at = this.states.length - 1
    this.joined = join
  }

  /** The state before, or the present one where there is none before. */
  undo() {
    return this.move(-1)
  }

  redo() {
    return this.move(1)
  }

  move(step) {
    this.at = Math.min(Math.max(this.at + step, 0), this.states.length - 1)
    this.joined = null
    return this.state
  }
}
