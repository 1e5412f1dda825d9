/** What a client may be told in the place of an answer. */
enum Why {
    WRONG = 1,       // the image: do not send it again
    OVERLOADED = 2,  // come back after retry_after seconds
    LATE = 3,        // the time was over
    CLOSED = 4,      // the service ends: ask another one
    FAILED = 5       // a backend raised; the service's log says more
}

exception Refused {
    1: Why why,
    2: string reason,
    3: double retry_after = 0
}

service Brightness {
    /** How bright a picture is, 0 to 255. `timeout` is in seconds; 0 for the service's own. */
    double brightness(1: binary image, 2: double timeout = 0) throws (1: Refused refused)
    bool ready()
}
