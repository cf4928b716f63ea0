// Undo and redo over states that compare with ===.

export class History {
  /** first: the state before any edit. limit: the number of states kept. */
  constructor(first, limit = 200) {
    this.states = [first]
    this.at = 0
    this.limit = limit
    this.joined = null // the `join` of the last push, null after undo and redo
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

  /** Adds a state after the current one and discards the redo states. Consecutive states with the same `join` form one step. */
  push(state, join = null) {
    if (state === this.state) return
    const joins = join !== null && join === this.joined
    if (!joins) this.at++
    this.states.splice(this.at, Infinity, state)
    if (this.states.length > this.limit) this.states.shift()
    this.at = this.states.length - 1
    this.joined = join
  }

  /** The previous state, which becomes the current one; the current one where there is none. */
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
