package com.example.classifier

import java.io.File

/** Names labels by logits, where the runtime is a stub: a line of the named, one of the shares. */
fun main(arguments: Array<String>) {
    Classifier(File("no-model"), File(arguments[0])).use {
        val logits = arguments.drop(1).map { one -> one.toFloat() }.toFloatArray()
        println(it.named(logits).joinToString(" "))
        println(it.probabilities(logits).joinToString(" "))
    }
}
